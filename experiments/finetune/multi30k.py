"""Multi30k: English to German from nothing, within an hour of CPU

A small Transformer (2 layers a side, 192 wide, 6,000 sub-words of both languages) reads 29,000
captions (Elliott 2016). The test set is test_2016_flickr, decoded with 4 beams, scored by sacreBLEU
in true case.

    python experiments/finetune/multi30k.py
"""

from study import DATA, ROOT, WORK, launch, recorded

NAME = "multi30k"
RUN = (WORK / NAME).relative_to(ROOT)  # of one that was interrupted, training goes on


def files(split: str) -> str:
    """Returns a split as two files that follow each other line by line."""
    return ",".join(f"{DATA}/multi30k/{split}.{language}.gz" for language in ("en", "de"))


def train() -> dict:
    """Trains by the recipe, with rows as short as the captions are."""
    options = {
        "data.train": files("train"), "data.validation": files("val"),
        "data.test": files("test_2016_flickr"), "data.batch_size": 32, "model.max_length": 64,
        "eval.beams": 4, "eval.max_batches": 2,
    }  # fmt: skip
    given = [f"--config.{key}={value}" for key, value in options.items()]
    return launch("train", "--config=configs/finetune/translate.py", f"--workdir={RUN}", *given)


def test(split: str) -> dict:
    """Writes and scores all translations of a split."""
    return launch("eval", f"--workdir={RUN}", f"--split={split}", "--max_batches=0")


def main() -> None:
    """Trains, and scores what validation and test set become."""
    recorded(NAME, "train", train)
    for split in ("validation", "test"):
        recorded(NAME, split, lambda split=split: test(split))


if __name__ == "__main__":
    main()
