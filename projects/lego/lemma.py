"""The base form of a verb, as WordNet's own rules give it (the same as NLTK's lemmatizer, without its download)."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

ENDINGS = (
    ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""),
)  # fmt: skip


def verb(word: str) -> str:
    """The shortest verb that `word` may be a form of; the word itself when there is none.

    A form among the exceptions stands for what is listed there. Else endings are exchanged until a verb is found.
    """
    verbs, irregular = _verbs(), _irregular()
    if word in irregular:
        return min((form for form in (word, *irregular[word]) if form in verbs), key=len, default=word)
    found = [form for form in (word, *_shorter([word])) if form in verbs]
    forms = _shorter([word])
    while forms and not found:
        forms = _shorter(forms)
        found = [form for form in forms if form in verbs]
    return min(found, key=len, default=word)


def _shorter(forms: list[str]) -> list[str]:
    return [form[: -len(old)] + new for form in forms for old, new in ENDINGS if form.endswith(old)]


@cache
def _verbs() -> frozenset[str]:
    return frozenset(word for line in _lines("verbs.txt") for word in line.split())


@cache
def _irregular() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for line in _lines("irregular.txt"):
        form, *lemmas = line.split()
        found[form] = tuple(lemmas)
    return found


def _lines(name: str) -> list[str]:
    text = (files("projects.lego") / "words" / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]
