"""`predict` of a captioner leaves its captions in the files that asg2cap writes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lightning_xai.callbacks.prediction_writer import PredictionWriter

# name -> (text, score, word_scores) of each sentence, best first, as JSON; by the published numbers of the formats
FORMATS = {
    0: lambda sentences: [sentences[0][0]],
    1: lambda sentences: [sentences[0][0], sentences[0][1], list(sentences[0][2])],
    2: lambda sentences: [[text, score] for text, score, _ in sentences],
    3: lambda sentences: [[text, score, list(words)] for text, score, words in sentences],
}


class WriteCaptions(PredictionWriter):
    """Write `file`, by default `<run folder>/captions.json`: an object with an entry for each sample's name.

    format: 0 [best sentence], 1 [best sentence, its score, scores of its words], 2 [[sentence, score], ...], 3
    [[sentence, score, scores of its words], ...]; all but 0 are meant for the task's `beam_width` above 1, whose scores
    are means of log-probabilities, but work with greedy decoding, too. The captions of all processes end in the one
    file, in the order of the data set.
    """

    def __init__(self, format: int = 0, file: str | None = None) -> None:
        super().__init__()
        if format not in FORMATS:
            raise ValueError(f"format={format!r} of captions must be one of {', '.join(map(str, FORMATS))}")
        self.format, self.file = format, file

    def collect(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, prediction: dict[str, Any]
    ) -> Iterator[tuple[int, tuple[str, list[Any]]]]:
        rows = zip(prediction["index"], prediction["names"], prediction["captions"], strict=True)
        for index, name, sentences in rows:
            yield index, (name, FORMATS[self.format](sentences))

    def write(self, trainer: pl.Trainer, entries: dict[int, tuple[str, list[Any]]]) -> None:
        captions = dict(entries.values())
        if len(captions) < len(entries):
            raise ValueError(f"{len(entries)} samples have only {len(captions)} names; they must differ to be written")
        file = Path(self.file) if self.file else Path(trainer.default_root_dir) / "captions.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.part")
        unfinished.write_text(json.dumps(captions, indent=2), encoding="utf-8")
        unfinished.replace(file)
        print(f"captions of {len(captions)} graphs: {file}")
