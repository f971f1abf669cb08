"""One conversation with one server: what is said is answered and remembered."""

from phi3_serve.client import Client
from phi3_serve.errors import Phi3ServeError
from phi3_serve.terminal.answer import Answer
from phi3_serve.terminal.answer_printer import AnswerPrinter
from phi3_serve.terminal.conversation import Conversation


class Session:
    """Sends what is said, and prints the answers."""

    def __init__(self, client: Client, conversation: Conversation, printer: AnswerPrinter) -> None:
        self.client = client
        self.conversation = conversation
        self.printer = printer

    def say(self, text: str) -> None:
        """Print the answer to ``text``. A message without an answer is not part of the conversation.

        Raises:
            Phi3ServeError: the server does not answer, or not to the end.
            KeyboardInterrupt: the user has stopped the answer. What had come is part of the conversation.
        """
        messages = self.conversation.messages
        messages.append({"role": "user", "content": text})
        answer = Answer(self.client, self.conversation.body(), self.printer.wait)
        try:
            self.printer.print(answer)
        finally:
            if answer.text:
                messages.append({"role": "assistant", "content": answer.text})
            else:
                messages.pop()

    def say_again(self) -> None:
        """Print another answer to the last message.

        Raises:
            Phi3ServeError: as ``say``, or nothing has been said. The earlier answer then stays.
            KeyboardInterrupt: as ``say``.
        """
        messages = self.conversation.messages
        last = next((n for n, m in reversed(list(enumerate(messages))) if m["role"] == "user"), None)
        if last is None:
            raise Phi3ServeError("Nothing has been said yet.")
        earlier = messages[last:]
        del messages[last:]
        try:
            self.say(earlier[0]["content"])
        finally:
            if len(messages) == last:
                messages.extend(earlier)
