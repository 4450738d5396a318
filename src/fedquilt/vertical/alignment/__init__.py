"""Private alignment: which rows of the parties' files are of the same person or thing, without showing anyone's ids."""
