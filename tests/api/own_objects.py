"""Small modules of nobody's library, and rows in memory."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.q, self.v = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        x = self.norm(x)
        return x + torch.softmax(self.q(x) @ x.transpose(1, 2), -1) @ self.v(x)


class Token(nn.Module):
    """A block that looks at each token alone."""

    def __init__(self, width):
        super().__init__()
        self.q, self.v = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.v(torch.relu(self.q(x)))


class Pictures(nn.Module):
    """Patches, two blocks and a head; its forward has a first parameter of its own name and gives bare logits."""

    def __init__(self, classes=10, width=16):
        super().__init__()
        torch.manual_seed(7)
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.layers = nn.ModuleList(Block(width) for _ in range(2))
        self.out = nn.Linear(width, classes)

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.out(x.mean(1))


class Words(nn.Module):
    """Embeddings, two blocks and a head, heeding its mask."""

    def __init__(self, tokens=260, width=16):
        super().__init__()
        torch.manual_seed(8)
        self.table = nn.Embedding(tokens, width)
        self.layers = nn.ModuleList(Token(width) for _ in range(2))
        self.head = nn.Linear(width, 2)

    def forward(self, tokens, mask):
        x = self.table(tokens) * mask.unsqueeze(-1)
        keep = mask.unsqueeze(-1).float()
        for layer in self.layers:
            x = layer(x)
        return self.head((x * keep).sum(1) / keep.sum(1))


def digits(rows=240):
    """The first digits as a dictionary of arrays."""
    found = load_digits()
    return {"image": (found.images[:rows] * 15.9).astype(np.uint8), "label": found.target[:rows]}


def sentences(rows=120):
    """A dictionary of columns: a sentence that says which of two classes it is of."""
    words = ("good fine", "bad poor")
    return {"text": [f"{words[row % 2]} {row}" for row in range(rows)], "label": [row % 2 for row in range(rows)]}
