"""What can be typed while `deployer watch` runs, each with Enter: nothing here needs a terminal of its own."""

from __future__ import annotations

AGAIN, BACK, QUIT, HELP = "rs", "r", "q", "h"

TEXT = "rs deploys again, r goes back to the save before, q quits; each with Enter"

_SYNONYMS = {"?": HELP, "help": HELP, "quit": QUIT, "exit": QUIT}


def meaning(text: str) -> str | None:
    """One of the keys; HELP for what is none. An empty line means nothing: it parts what is on the screen."""
    word = text.strip().lower()
    word = _SYNONYMS.get(word, word)
    if not word:
        return None
    return word if word in (AGAIN, BACK, QUIT) else HELP
