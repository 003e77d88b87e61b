#!/usr/bin/python3
"""Stands in for vLLM where many streams and many starts are needed: a program of hosts, run as ``vllm serve --config``.

It drains as vLLM 0.32.0 was seen to (after SIGTERM it ends its requests, answers a new one
with 500, and then exits 0), and answers a few questions. Lines ``# knob: NAME=VALUE`` in its config make it wrong.
"""

import http.server
import json
import os
import re
import signal
import sys
import threading
import time

with open(sys.argv[3]) as file:
    text = file.read()
config = dict(re.findall(r"^([a-z-]+): (.+)$", text, re.MULTILINE))
knobs = dict(re.findall(r"^# knob: ([a-z_]+)=(.+)$", text, re.MULTILINE))
running, draining, lock = 0, threading.Event(), threading.Lock()
tokens = 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def say(self, body, status=200, kind="application/json"):
        body = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/metrics":
            self.say(
                "vllm:num_requests_running %d\nvllm:generation_tokens_total %d\n" % (running, tokens), 200, "text/plain"
            )
        else:
            self.say(json.dumps({"release": knobs.get("release", ""), "model": config["model"]}))

    def do_POST(self):
        global running
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if draining.is_set():
            self.say("{}", 500)
            return
        with lock:
            running += 1
        try:
            self.answer(asked)
        finally:
            with lock:
                running -= 1

    def answer(self, asked):
        if self.path == "/tokenize":
            more = 1 if knobs.get("vocabulary") == "other" else 0
            self.say(json.dumps({"tokens": [ord(letter) + more for letter in asked["prompt"]]}))
        elif self.path == "/detokenize":
            self.say(json.dumps({"prompt": "".join(map(chr, asked["tokens"]))}))
        elif asked.get("stream"):
            self.stream(asked)
        elif self.path == "/v1/chat/completions":
            self.say(json.dumps({"choices": [self.reply(asked)]}))
        else:
            self.complete(asked)

    def complete(self, asked):
        global tokens
        tokens += 1
        choice = {"text": knobs.get("release", "1")}
        if "prompt_logprobs" in asked:
            off = float(knobs.get("numerics", "0"))
            choice["prompt_logprobs"] = [None]
            choice["prompt_logprobs"] += [{"7": {"logprob": -len(word) - off}} for word in asked["prompt"].split()[1:]]
        self.say(json.dumps({"choices": [choice], "usage": {"completion_tokens": asked.get("max_tokens", 1)}}))

    def reply(self, asked):
        """It adds up in its head, and calls the first function that it gets with what it was asked."""
        asks = asked["messages"][-1]["content"]
        if asked.get("tools") and knobs.get("tools") != "broken":
            call = {"name": asked["tools"][0]["function"]["name"], "arguments": json.dumps({"words": asks})}
            return {"message": {"content": None, "tool_calls": [{"function": call}]}, "finish_reason": "tool_calls"}
        total = sum(map(int, re.findall("[0-9]+", asks))) + (knobs.get("answers") == "wrong")
        return {"message": {"content": str(total)}, "finish_reason": "stop"}

    def stream(self, asked):
        global tokens
        pieces = asked.get("max_tokens", 1)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        time.sleep(float(knobs.get("first_token_seconds", "0")))
        for number in range(pieces):
            reason = "length" if number == pieces - 1 else None
            piece = {"delta": {"content": "piece"}} if "messages" in asked else {"text": "piece"}
            choice = {**piece, "finish_reason": reason}
            self.send_event(json.dumps({"choices": [choice], "release": knobs.get("release")}))
            tokens += 1
            time.sleep(float(knobs.get("token_seconds", "0.02")))
            if knobs.get("stream") == "error":
                self.send_event(json.dumps({"error": {"message": "EngineCore encountered an issue"}}))
        if (asked.get("stream_options") or {}).get("include_usage"):
            self.send_event(json.dumps({"choices": [], "usage": {"completion_tokens": pieces}}))
        self.send_event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def send_event(self, text):
        event = b"data: " + text.encode() + b"\n\n"
        self.wfile.write(b"%x\r\n" % len(event) + event + b"\r\n")
        self.wfile.flush()

    def log_message(self, *_):
        pass


def stop(*_):
    draining.set()

    def end():
        while running:
            time.sleep(0.02)
        os._exit(0)

    threading.Thread(target=end).start()


signal.signal(signal.SIGTERM, stop)
os.makedirs(os.environ["HOME"], exist_ok=True)
print("INFO Using '%s' Mxfp4 MoE backend." % knobs.get("kernel", "CPU"), flush=True)
if "dies" in knobs:
    sys.exit("RuntimeError: the knob says that this release does not start")
print("INFO [default_loader.py:501] Loading weights took 0.25 seconds", flush=True)
time.sleep(float(knobs.get("start_seconds", "0")))
http.server.ThreadingHTTPServer.request_queue_size = 128
http.server.ThreadingHTTPServer((config["host"], int(config["port"])), Handler).serve_forever()
