"""Renders dialogues as harmony tokens, the way vLLM renders requests. Runs in the engine's environment."""

from __future__ import annotations

import json
from typing import Any

from openai_harmony import (
    Conversation,
    DeveloperContent,
    HarmonyEncodingName,
    Message,
    ReasoningEffort,
    Role,
    SystemContent,
    ToolDescription,
    load_harmony_encoding,
)

from lab.artifacts.model.dialogues import OWN_KEY, Called, Dialogue, Returned, Said, Setting, Text, User
from lab.artifacts.model.questions import Questions
from lab.artifacts.model.sheets import Sample


class Renderer:
    """Makes token sequences of dialogues; reads the vocabulary from ``$TIKTOKEN_ENCODINGS_BASE``."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._beginnings: dict[Setting, list[int]] = {}
        self._encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text in which special tokens are spelled out."""
        tokens: list[int] = self._encoding.encode(text, allowed_special="all")
        return tokens

    def render(self, item: Dialogue | Text) -> Sample:
        """The tokens of the prompt and of the right reply.

        Returns:
            All the tokens, and how many of them are the prompt.
        """
        if isinstance(item, Text):
            prompt = self.encode(item.prompt)
            return [*prompt, *self.encode(f"{item.continues}<|return|>")], len(prompt)
        given, reply = _reply(item)
        prompt = [*self._prompt(item), *self.encode(given)]
        return [*prompt, *self.encode(reply)], len(prompt)

    def tail(self, sample: Sample) -> str:
        """The end of a sample's prompt and the beginning of its reply, for people to read."""
        tokens, prompt = sample
        return f"{self._encoding.decode(tokens[:prompt])[-120:]!r} -> {self._encoding.decode(tokens[prompt:])[:120]!r}"

    def _prompt(self, dialogue: Dialogue) -> list[int]:
        if dialogue.setting not in self._beginnings:
            self._beginnings[dialogue.setting] = self._beginning(dialogue.setting)
        turns = "".join(_turn(turn, dialogue.thoughts_kept) for turn in dialogue.turns)
        return [*self._beginnings[dialogue.setting], *self.encode(f"{turns}<|start|>assistant")]

    def _beginning(self, setting: Setting) -> list[int]:
        system = SystemContent.new()
        if setting.effort:
            system = system.with_reasoning_effort(ReasoningEffort[setting.effort.upper()])
        if setting.date:
            system = system.with_conversation_start_date(setting.date)
        messages = [Message.from_role_and_content(Role.SYSTEM, system)]
        if setting.instructions or setting.tools:
            developer = DeveloperContent.new()
            if setting.instructions:
                developer = developer.with_instructions(setting.instructions)
            if setting.tools:
                developer = developer.with_function_tools([self._tool(name) for name in setting.tools])
            messages.append(Message.from_role_and_content(Role.DEVELOPER, developer))
        tokens: list[int] = self._encoding.render_conversation(Conversation.from_messages(messages))
        return tokens

    def _tool(self, name: str) -> Any:
        tool = self._questions.tool(name)
        return ToolDescription.new(tool.name, tool.description, parameters=tool.parameters)


def _turn(turn: User | Said | Called | Returned, thoughts_kept: bool) -> str:
    """What the conversation holds of a turn once it is past."""
    if isinstance(turn, User):
        return f"<|start|>user<|message|>{turn.text}<|end|>"
    if isinstance(turn, Said):
        # The thought before an answer is dropped once the answer is given.
        return f"<|start|>assistant<|channel|>final<|message|>{turn.text}<|end|>"
    if isinstance(turn, Returned):
        return f"<|start|>functions.{turn.tool}<|channel|>commentary to=assistant<|message|>{turn.text}<|end|>"
    thought = f"<|start|>assistant<|channel|>analysis<|message|>{turn.thought}<|end|>"
    # vLLM puts earlier calls into the prompt with the recipient before the channel.
    call = f"<|start|>assistant to=functions.{turn.tool}<|channel|>commentary json<|message|>{turn.arguments}<|call|>"
    return thought * thoughts_kept + call


def _reply(dialogue: Dialogue) -> tuple[str, str]:
    """What a grammar writes after ``<|start|>assistant``, and what the model has to say after that."""
    reply = dialogue.reply
    thought = f"<|channel|>analysis<|message|>{reply.thought}<|end|><|start|>assistant<|channel|>"
    if isinstance(reply, Called):
        call = f"commentary to=functions.{reply.tool} <|constrain|>json<|message|>{reply.arguments}<|call|>"
        return "", thought + call
    if dialogue.key is None:
        return "", f"{thought}final<|message|>{reply.text}<|return|>"
    # vLLM's grammar of gpt-oss asks for a format in the header of the message, ' <|constrain|>json' or ' json'
    # (parser/harmony.py). A message with the second one is lost, so the model must choose the first one.
    given = f"{thought}final "
    header = "<|constrain|>json<|message|>"
    value = f" {json.dumps(reply.text, ensure_ascii=False)}}}<|return|>"
    if dialogue.key == OWN_KEY:
        return given, f'{header}{{"{OWN_KEY}":{value}'
    return f'{given}{header}{{"{dialogue.key}":', value
