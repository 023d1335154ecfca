"""CTranslate2 or Marian in a process of its own: beside what other tests have loaded they went wrong.

Reads a request from standard input and writes the answer to standard output, both JSON.
"""

import json
import sys
from typing import Any


def ctranslate2(request: dict[str, Any]) -> dict[str, Any]:
    """The best hypothesis and its score for each of the searches, and the tokens' scores of given translations."""
    import ctranslate2

    translator = ctranslate2.Translator(request["directory"], compute_type="float32", intra_threads=1)
    found = []
    for options in request["searches"]:
        results = translator.translate_batch(request["sources"], min_decoding_length=0, return_scores=True, **options)
        found.append([(result.hypotheses[0], result.scores[0]) for result in results])
    scored = translator.score_batch(*request["scored"])
    return {"found": found, "scored": [result.log_probs for result in scored]}


def marian(request: dict[str, Any]) -> dict[str, Any]:
    """The lines that each of the option strings gives."""
    import pymarian

    found = [pymarian.Translator(options).translate(request["sources"]) for options in request["searches"]]
    return {"found": found}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    answer = {"ctranslate2": ctranslate2, "marian": marian}[request["kind"]](request)
    json.dump(answer, sys.stdout)
