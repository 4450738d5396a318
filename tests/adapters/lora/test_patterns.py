"""Ranks and alphas by pattern, against PEFT's own choice of the key that a module's path matches."""

from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.core.errors import ConfigError

KEYS = [
    *("q_proj", "self_attn.q_proj", "layers.1.self_attn.q_proj", "model.layers.1.mlp.up", "proj", "layers.1", "1"),
    *(r"layers\.[0-1]\.self_attn\.(q|k)_proj", r".*\.mlp\..*", "^model.layers.11.mlp.up$", "^q_proj", "layers.1.*"),
]
PATHS = [f"model.layers.{n}.{m}" for n in (0, 1, 11) for m in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up")]


@settings(max_examples=150, deadline=None)
@given(table=st.dictionaries(st.sampled_from(KEYS), st.integers(1, 64), max_size=4), path=st.sampled_from(PATHS))
def test_a_module_has_the_rank_and_alpha_that_peft_gives_it(table, path):
    own = LoraSettings(rank=7, alpha=5.0, rank_pattern=table, alpha_pattern={key: 2.0 * n for key, n in table.items()})
    key = get_pattern_key(table, path)
    assert own.rank_of(path) == table.get(key, 7)
    assert own.alpha_of(path) == 2.0 * table.get(key, 2.5)
    assert own.scaling(path) == own.alpha_of(path) / own.rank_of(path)


def problems_of_patterns(own: LoraSettings) -> tuple[str, ...]:
    try:
        own.refuse_patterns(PATHS)
    except ConfigError as error:
        return error.problems
    return ()


@settings(max_examples=150, deadline=None)
@given(table=st.dictionaries(st.sampled_from(KEYS), st.integers(1, 3), max_size=4))
def test_patterns_are_refused_where_their_order_would_matter_or_they_match_nothing(table):
    own = LoraSettings(rank=7, alpha=5.0, rank_pattern=table)
    backwards = LoraSettings(rank=7, alpha=5.0, rank_pattern=dict(reversed(table.items())))
    idle = [key for key in table if all(get_pattern_key([key], path) != key for path in PATHS)]
    told = problems_of_patterns(own)
    assert all(any(f"holds '{key}'" in problem for problem in told) for key in idle)
    if not told:
        assert all(own.rank_of(path) == backwards.rank_of(path) for path in PATHS)
    elif not idle:
        assert all("both match" in problem for problem in told)


def test_a_refused_pattern_is_named_with_what_there_is():
    ranks, alphas = {"query": 2}, {"up": 1.0, "layers.1.*": 2.0}
    idle, torn = problems_of_patterns(LoraSettings(4, 4.0, rank_pattern=ranks, alpha_pattern=alphas))
    assert idle == (
        "adapter.rank_pattern holds 'query', which matches no adapted module; they are called k_proj, q_proj, up, as "
        "in 'model.layers.0.mlp.up'"
    )
    assert torn == (
        "adapter.alpha_pattern: 'up' = 1 and 'layers.1.*' = 2 both match 'model.layers.1.mlp.up', and keys of a table "
        "have no order; let only one match it"
    )
