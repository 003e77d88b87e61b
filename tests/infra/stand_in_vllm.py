"""What the small stand-ins of vLLM have in common: programs of hosts, so it is the text of a class."""

from __future__ import annotations

from vllm_fleet.schema.gates import GATES

#: Needs ``http.server``; the stand-in goes on with what it answers to ``do_GET`` and ``do_POST``.
HANDLER = """\
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

"""
#: For the fleet.yml of such a fleet: they answer a completion, and nothing else.
WAIVE = dict.fromkeys(GATES, "a small program stands in for vLLM")
