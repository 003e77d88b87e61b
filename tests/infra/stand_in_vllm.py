"""What the small stand-ins of vLLM have in common: programs of hosts, so it is the text of a class."""

#: Needs ``http.server``; the stand-in goes on with what it answers to ``do_GET`` and ``do_POST``.
HANDLER = """\
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

"""
