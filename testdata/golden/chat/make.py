"""Renders the chat templates of this folder with transformers' `apply_chat_template`.

    python make.py        # writes cases.json

`chatml.jinja` is SmolLM2-135M-Instruct's; the others are written for this test, each in the manner
of a family of models in the wild. Where transformers raises an error, the case has its message.
"""
import datetime
import json
from pathlib import Path

import transformers.utils.chat_template_utils as utils

HERE = Path(__file__).parent
NOW = datetime.datetime(2026, 2, 3, 4, 5, 6, tzinfo=datetime.timezone.utc)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def text(role, content, **more):
    return {"role": role, "content": content, **more}


TOOL = {"type": "function", "function": {
    "name": "weather", "description": "Weather <now> & \"here\" in é",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {
        "type": "integer", "default": 3}}, "required": ["city"], "additionalProperties": False}}}
CHATS = {
    "one": [text("user", "Hi there, it's <b>me</b>")],
    "system": [text("system", "  Be brief.\n"), text("user", " Hello \n")],
    "turns": [text("system", "S"), text("user", "1"), text("assistant", "2"), text("user", "3")],
    "odd": [text("user", "1"), text("user", "2")],
    "answered": [text("user", "1"), text("assistant", "<think>\nhm\n</think>\n\n2")],
    "reasoned": [text("user", "1"), text("assistant", "2", reasoning_content="why\n"),
                 text("user", "3")],
    "unicode": [text("user", "naïve 日本語 🙂\n\ttab \"quotes\" \\ {{ not a template }}")],
    "calls": [text("user", "Rain?"),
              {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {
                  "name": "weather", "arguments": {"city": "Łódź", "days": 2, "x": 1.5e-7}}}]},
              text("tool", "dry"), text("tool", "wet"), text("assistant", "Dry.")],
    "long": [text("user" if i % 2 == 0 else "assistant", f"message {i}") for i in range(9)],
    "empty": [],
}
VARIANTS = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": False},
    {"add_generation_prompt": True, "tools": [TOOL, TOOL]},
    {"add_generation_prompt": True, "enable_thinking": False, "date_string": "1 May 2020"},
]


def main() -> None:
    utils.datetime = Clock
    cases = []
    for path in sorted(HERE.glob("*.jinja")):
        template = path.read_text()
        for name, messages in CHATS.items():
            for variant in VARIANTS:
                case = {"template": path.name, "chat": name, "messages": messages,
                        "variables": dict(variant)}
                options = dict(variant)
                try:
                    [case["text"]], _ = utils.render_jinja_template(
                        conversations=[messages], chat_template=template,
                        tools=options.pop("tools", None), **options, **SPECIAL)
                except Exception as error:
                    case["error"] = str(error)
                cases.append(case)
    out = {"now": int(NOW.timestamp()), "special": SPECIAL, "cases": cases}
    (HERE / "cases.json").write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")
    failed = [(c["template"], c["chat"], c["error"]) for c in cases if "error" in c]
    print(len(cases), "cases;", len(failed), "errors", set(failed))


if __name__ == "__main__":
    main()
