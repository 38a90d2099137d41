"""What is quoted of logs and answers, bounded and without secrets."""

import contextlib
import json
import os
import re

# Bounded, but long enough for a whole chain of exceptions.
LONGEST_QUOTE = 1200
TRACEBACK = re.compile(r"^(?:Exception Group )?Traceback \(most recent call last\):$", re.MULTILINE)
FRAME = re.compile(r'^[ |+]*File "([^"]+)", line (\d+), in (.+)(?:\n[ |]+(?!File )(\S.*))?$', re.MULTILINE)
URL_PASSWORD = re.compile(r"(://[^\s:/@]*:)[^\s/@]+@")


def mask_urls(text: str) -> str:
    """Return a text with the passwords of URLs masked."""
    return URL_PASSWORD.sub(r"\1**@", text)


def last_line(text: str) -> str:
    """Return the last line that is not blank."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def last_words(text: str) -> str:
    """Return the last line that is not blank, passwords in URLs masked; of a JSON log its message and exceptions."""
    line = last_line(text)
    if line.startswith("{"):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            # Of a printed chain, the lines that are not indented name each exception.
            raised = re.findall(r"^[\w.]+(?:: .*)?$", entry.get("exception", ""), re.MULTILINE)
            line = ": ".join([str(entry.get("message", line)).strip(), *([" -> ".join(raised)] if raised else [])])
    return mask_urls(line)[:600]


def chain(told: str) -> str:
    """Return a printed chain of exceptions in one line: each whole, with the frame that raised it and ours."""
    links = []
    for block in re.split(r"\n\n(?:The above exception was|During handling of)[^\n]*\n\n", told):
        frames = list(FRAME.finditer(block))
        # Behind the last frame: source that goes over several lines, marks below it, then the exception.
        rest = block[frames[-1].end() :] if frames else TRACEBACK.sub("", block)
        said = re.sub(r"\A(?:\n(?: {4}|[ ~^]+$).*)*", "", rest, flags=re.MULTILINE)
        places = dict.fromkeys(
            f"{re.sub('.*/(?:site-packages|python3[.0-9]*|releases/[^/]+)/', '', frame[1])}:{frame[2]} in {frame[3]}"
            + (f": {frame[4]}" if frame[4] else "")
            for frame in [*[frame for frame in frames if "/app/" in frame[1]][-1:], *frames[-1:]]
        )
        links.append(" ".join(said.split()) + (f" [{'; '.join(places)}]" if places else ""))
    return " -> ".join(filter(None, links))


def quote(line: str) -> str:
    """Return what a log says, an exception with its whole chain, and take out what may be a secret."""
    exception = ""
    if line.startswith("{"):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            line = str(entry.get("message") or entry.get("event") or line)
            exception = str(entry.get("exception") or "")
    if found := TRACEBACK.search(line):
        line, exception = line[: found.start()], exception or line[found.start() :]
    line = ": ".join(filter(None, [line.strip(), chain(exception)]))
    line = mask_urls(line)
    line = " ".join(re.sub(r"[A-Za-z0-9_-]{24,}", _masked, line).split())
    return line if len(line) <= LONGEST_QUOTE else f"{line[: LONGEST_QUOTE // 2]} ... {line[-LONGEST_QUOTE // 2 :]}"


def _masked(word: re.Match[str]) -> str:
    # What is a file's name here is no secret.
    way = re.search(r"(?:/[\w.@:+-]+)+$", word.string[: word.end()])
    return word[0] if not re.search(r"\d", word[0]) or (way and os.path.lexists(way[0])) else "**"
