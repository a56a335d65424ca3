"""Smoke test of texts: the longest text, and the text with the largest token, are run before any other work."""

from __future__ import annotations

from ..data import CalibrationSet
from ..errors import DataError, ModelError
from ..runtime.session import Session


def run_longest_texts(session: Session, samples: CalibrationSet) -> None:
    """Run the text with the largest token and the text with most tokens. Raises DataError where the model cannot.

    Tables of tokens and of positions that are too small fail on these texts first.
    """
    texts = samples.texts
    if texts is None:
        return
    tokens, largest = texts.lengths[: len(samples)], texts.largest[: len(samples)]
    for index in {int(largest.argmax()), int(tokens.argmax())}:
        try:
            session.run(samples.read([index] * (samples.fixed_batch or 1)))
        except ModelError as error:
            raise DataError(
                f"{texts.where}: the model cannot run sample {index}, {tokens[index]} tokens up to {largest[index]}"
                f" by {texts.tokenizer}; its table of tokens or of positions may have fewer rows; give --tokenizer the"
                f" model's own tokenizer.json, or a smaller --max-length ({error})"
            ) from None
