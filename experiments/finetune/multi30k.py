"""Multi30k: English-German translation from scratch, within an hour of CPU time

A small Transformer (2 layers on each side, width 192, 6,000 joint subwords) is trained on 29,000
captions (Elliott 2016). The test set is test_2016_flickr, decoded with 4 beams, evaluated with
case-sensitive sacreBLEU.

    python experiments/finetune/multi30k.py
"""

from functools import partial

from study import DATA, ROOT, WORK, Report, Target, launch, recorded

from llm_jax.record import table

SPLITS = {"validation": "val", "test": "test_2016_flickr"}
NAME = "multi30k"
RUN = (WORK / NAME).relative_to(ROOT)  # an interrupted run is resumed


def files(split: str) -> str:
    """Returns a split as two files that follow each other line by line."""
    return ",".join(f"{DATA}/multi30k/{split}.{language}.gz" for language in ("en", "de"))


def train() -> dict:
    """Trains by the recipe, with rows as short as the captions are."""
    options = {
        "data.train": files("train"), "data.validation": files(SPLITS["validation"]),
        "data.test": files(SPLITS["test"]), "data.batch_size": 32, "model.max_length": 64,
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
    for split in SPLITS:
        recorded(NAME, split, partial(test, split))


def report(runs: dict[str, dict]) -> Report:
    """BLEU of both splits, and what training took."""
    trained, found = runs["train"], runs["test"]
    took = trained["cpu_seconds"] + found["cpu_seconds"]
    targets = [
        Target("sacreBLEU >= 30 on test_2016_flickr, 4 beams", f"{found['bleu']:.1f}",
               found["bleu"] >= 30),
        Target("within an hour of CPU time", f"{took / 60:.0f} CPU minutes", took < 3600),
    ]  # fmt: skip
    scored = [
        [SPLITS[split], runs[split]["examples"], f"{runs[split]['bleu']:.2f}",
         f"{runs[split]['chrf']:.2f}", f"{runs[split]['loss']:.3f}",
         f"{runs[split]['cpu_seconds']:.0f}"] for split in SPLITS if split in runs
    ]  # fmt: skip
    header = ["split", "pairs", "sacreBLEU", "chrF", "nats per token", "CPU seconds"]
    return Report(targets, f"""{table(header, scored)}

`{found["bleu_signature"]}`

Training: {trained["step"]:,} steps, {trained["cpu_seconds"] / 60:.0f} CPU minutes on two cores,
{trained["seconds"] / 60:.0f} minutes of wall time on a shared machine.
{trained.get("note", "")}

    {trained["command"]}""")


if __name__ == "__main__":
    main()
