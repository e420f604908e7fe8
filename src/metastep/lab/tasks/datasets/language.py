"""Penn Treebank by words and Shakespeare by characters."""

from metastep.lab.tasks.loaders.text import END, UNKNOWN, encode, read_characters, read_words, vocabulary
from metastep.lab.tasks.request import Request
from metastep.lab.tasks.sources import Layout, find_files
from metastep.lab.tasks.splits import size_left, size_to_train
from metastep.lab.tasks.text import TextData

PTB = Layout(folders=("ptb", "simple-examples/data"), train=("ptb.train.txt",), test=("ptb.valid.txt", "ptb.test.txt"))
PTB_REMAINS = Layout(folders=("ptb",), train=("valid.txt",), test=("test.txt",))
SHAKESPEARE = Layout(folders=("text",), train=("tinyshakespeare.txt",))


def read_ptb(request: Request, *, chunk: int) -> TextData:
    """Read Penn Treebank: the standard files or, where the training text is missing, the two others.

    The standard files: trained on ptb.train.txt, inner_valid and then outer_valid are the beginning of
    ptb.valid.txt, tested on ptb.test.txt. Otherwise: trained on valid.txt, held out from the first half of
    test.txt, tested on its second half. Tokens of the held-out text that no split asks for are not used.
    """
    found = find_files("Penn Treebank", (PTB, PTB_REMAINS), request.data_dir)
    training, *others = (read_words(path) for path in (*found.train, *found.test))
    if found.layout is PTB:
        held_out, test = others
        notes = "Penn Treebank, standard files"
    else:
        (rest,) = others
        held_out, test = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        notes = (
            "Penn Treebank without its training text: trained on valid.txt, the first half of test.txt held "
            "out for validation, its second half for the test; perplexities are not the standard split's"
        )
    inner, outer = request.inner_valid, request.outer_valid
    size_left(len(held_out), inner_valid=inner, outer_valid=outer)
    numbers = vocabulary(training, always=(UNKNOWN, END))
    splits = {
        "train": training[: size_to_train(len(training), request.train_size)],
        "inner_valid": held_out[:inner],
        "outer_valid": held_out[inner : inner + outer],
        "test": test,
    }
    return TextData(
        num_classes=len(numbers),
        notes=notes,
        tokens_by_split={name: encode(tokens, numbers) for name, tokens in splits.items()},
        chunk=chunk,
        recurrent=True,
    )


def read_shakespeare(request: Request, *, chunk: int, recurrent: bool, test: int = 40_000) -> TextData:
    """Read Shakespeare's characters: the last `test` are the test, before them inner_valid, then outer_valid.

    In the order of the text: train, outer_valid, inner_valid, test. The vocabulary is the whole text's.
    """
    found = find_files("Tiny Shakespeare", (SHAKESPEARE,), request.data_dir)
    characters = read_characters(found.train[0])
    numbers = vocabulary(characters)
    tokens = encode(characters, numbers)
    test_start = max(len(tokens) - test, 0)
    inner_start = test_start - request.inner_valid
    left = size_left(test_start, inner_valid=request.inner_valid, outer_valid=request.outer_valid)
    return TextData(
        num_classes=len(numbers),
        notes=f"Tiny Shakespeare by characters, {len(tokens)} of them",
        tokens_by_split={
            "train": tokens[: size_to_train(left, request.train_size)],
            "inner_valid": tokens[inner_start:test_start],
            "outer_valid": tokens[left:inner_start],
            "test": tokens[test_start:],
        },
        chunk=chunk,
        recurrent=recurrent,
    )
