"""Renders dialogues as harmony tokens, the way vLLM renders requests. Runs in the engine's environment."""

from __future__ import annotations

from typing import Any

from openai_harmony import (  # type: ignore[import-not-found]  # only the engine's environment has it
    Author,
    DeveloperContent,
    HarmonyEncodingName,
    Message,
    ReasoningEffort,
    RenderOptions,
    Role,
    SystemContent,
    ToolDescription,
    load_harmony_encoding,
)

from lab.artifacts.model.dialogues import Called, Dialogue, Returned, Said, Text, User
from lab.artifacts.model.questions import Questions


class Renderer:
    """Makes token sequences of dialogues; reads the vocabulary from ``$TIKTOKEN_ENCODINGS_BASE``."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text in which special tokens are spelled out."""
        tokens: list[int] = self._encoding.encode(text, allowed_special="all")
        return tokens

    def render(self, item: Dialogue | Text) -> tuple[list[int], int]:
        """The tokens of the prompt and of the right reply.

        Returns:
            All the tokens, and how many of them are the prompt.
        """
        if isinstance(item, Text):
            prompt = self.encode(item.prompt)
            return [*prompt, *self.encode(f"{item.continues}<|return|>")], len(prompt)
        prompt = self._prompt(item)
        return [*prompt, *self.encode(_reply(item.reply))], len(prompt)

    def _prompt(self, dialogue: Dialogue) -> list[int]:
        system = SystemContent.new()
        if dialogue.effort:
            system = system.with_reasoning_effort(ReasoningEffort[dialogue.effort.upper()])
        if dialogue.date:
            system = system.with_conversation_start_date(dialogue.date)
        tokens = self._message(Message.from_role_and_content(Role.SYSTEM, system), bool(dialogue.tools))
        if dialogue.instructions or dialogue.tools:
            developer = DeveloperContent.new()
            if dialogue.instructions:
                developer = developer.with_instructions(dialogue.instructions)
            if dialogue.tools:
                developer = developer.with_function_tools([self._tool(name) for name in dialogue.tools])
            tokens += self._message(Message.from_role_and_content(Role.DEVELOPER, developer), bool(dialogue.tools))
        for turn in dialogue.turns:
            tokens += self._turn(turn, dialogue)
        return [*tokens, *self.encode("<|start|>assistant")]

    def _turn(self, turn: User | Said | Called | Returned, dialogue: Dialogue) -> list[int]:
        if isinstance(turn, User):
            return self._message(Message.from_role_and_content(Role.USER, turn.text))
        if isinstance(turn, Said):
            # Thoughts before an answer are dropped once it is given.
            return self._message(Message.from_role_and_content(Role.ASSISTANT, turn.text).with_channel("final"))
        if isinstance(turn, Returned):
            author = Author.new(Role.TOOL, f"functions.{turn.tool}")
            message = Message.from_author_and_content(author, turn.text).with_channel("commentary")
            return self._message(message.with_recipient("assistant"))
        thought = f"<|start|>assistant<|channel|>analysis<|message|>{turn.thought}<|end|>"
        # vLLM puts earlier calls into the prompt with the recipient before the channel.
        call = f"<|start|>assistant to=functions.{turn.tool}<|channel|>commentary json<|message|>{turn.arguments}<|call|>"
        return self.encode(thought * dialogue.thoughts_kept + call)

    def _message(self, message: Any, with_tools: bool = False) -> list[int]:
        options = RenderOptions(conversation_has_function_tools=with_tools)
        tokens: list[int] = self._encoding.render(message, render_options=options)
        return tokens

    def _tool(self, name: str) -> Any:
        tool = self._questions.tool(name)
        return ToolDescription.new(tool.name, tool.description, parameters=tool.parameters)


def _reply(reply: Said | Called) -> str:
    """What the model has to say after ``<|start|>assistant``."""
    thought = f"<|channel|>analysis<|message|>{reply.thought}<|end|><|start|>assistant<|channel|>"
    if isinstance(reply, Said):
        return f"{thought}final<|message|>{reply.text}<|return|>"
    return f"{thought}commentary to=functions.{reply.tool} <|constrain|>json<|message|>{reply.arguments}<|call|>"
