"""As much of Jira's query language as finding a ticket needs: clauses joined by AND, then ORDER BY."""

import re
from collections.abc import Callable, Mapping, Sequence

_TOKEN = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'|(!=|>=|<=|[=<>~(),])|([^\s"\'=<>~(),!]+))')


class JqlError(ValueError):
    """The message Jira would give."""


class _Tokens:
    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, bool]] = []  # text, quoted
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                raise JqlError(f"Error in the JQL Query: cannot be parsed at character {position + 1}.")
            quoted = match[1] if match[1] is not None else match[2]
            token = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else match[3] or match[4]
            self.tokens.append((token, quoted is not None))
            position = match.end()

    def word(self, *words: str) -> bool:
        """Take the next token if it is one of these (unquoted, any case)."""
        if self.tokens and not self.tokens[0][1] and self.tokens[0][0].lower() in words:
            self.tokens.pop(0)
            return True
        return False

    def take(self) -> str:
        if not self.tokens:
            raise JqlError("Error in the JQL Query: it ends too early.")
        return self.tokens.pop(0)[0]


def search(
    jql: str,
    rows: Sequence[object],
    fields: Mapping[str, Callable[[object], Sequence[str]]],
    known: Callable[[str, str], bool],
) -> list[object]:
    """The rows that fit, in the wanted order. `fields` reads a row's values; `known(field, value)` says whether the
    value exists at all (Jira refuses a query about a project that does not exist or is hidden)."""
    tokens = _Tokens(jql)
    clauses = []
    while tokens.tokens and not tokens.word("order"):
        if clauses and not tokens.word("and"):
            raise JqlError(f"Error in the JQL Query: Expecting 'AND' but got '{tokens.take()}'.")
        clauses.append(_clause(tokens, fields, known))
    rows = _ordered(tokens, rows, fields)
    if not clauses:
        raise JqlError("Unbounded JQL queries are not allowed here. Please add a search restriction to your query.")
    return [row for row in rows if all(clause(row) for clause in clauses)]


def _clause(tokens: _Tokens, fields: Mapping, known: Callable[[str, str], bool]) -> Callable[[object], bool]:
    name = tokens.take()
    read = fields.get(name.lower())
    if read is None:
        raise JqlError(f"Field '{name}' does not exist or you do not have permission to view it.")
    operator = tokens.take().lower()
    if operator == "not":
        operator = f"not {tokens.take().lower()}"
    if operator not in ("=", "!=", "in", "not in", "~"):
        raise JqlError(f"Error in the JQL Query: the operator '{operator}' is not supported by the '{name}' field.")
    values = _values(tokens) if operator.endswith("in") else [tokens.take()]
    for value in values:
        if not known(name.lower(), value):
            raise JqlError(f"The value '{value}' does not exist for the field '{name}'.")
    if operator == "~":
        return lambda row: any(values[0].lower() in text.lower() for text in read(row))
    wanted = operator in ("=", "in")
    return lambda row: bool(set(values) & set(read(row))) is wanted


def _values(tokens: _Tokens) -> list[str]:
    if not tokens.word("("):
        raise JqlError("Error in the JQL Query: Expecting '('.")
    values = [tokens.take()]
    while tokens.word(","):
        values.append(tokens.take())
    if not tokens.word(")"):
        raise JqlError("Error in the JQL Query: Expecting ')'.")
    return values


def _ordered(tokens: _Tokens, rows: Sequence[object], fields: Mapping) -> list[object]:
    rows = list(rows)
    if not tokens.tokens:
        return rows[::-1]  # Jira's own order: newest first
    if not tokens.word("by"):
        raise JqlError("Error in the JQL Query: Expecting 'BY'.")
    keys = []
    while tokens.tokens:
        name = tokens.take().lower()
        if name not in fields:
            raise JqlError(f"Not able to sort using field '{name}'.")
        keys.append((fields[name], tokens.word("desc")))
        tokens.word("asc")
        if tokens.tokens and not tokens.word(","):
            raise JqlError(f"Error in the JQL Query: unexpected '{tokens.take()}'.")
    for read, backwards in reversed(keys):
        rows.sort(key=lambda row, read=read: list(read(row)), reverse=backwards)
    return rows
