"""The nginx configuration of a mirror: it serves files and ranges of files, and nothing else."""

from __future__ import annotations


def server_block(directory: str, listen: str, access_log: str) -> str:
    """The ``server`` block and its log format.

    Args:
        directory: the mirror's folder.
        listen: address and port.
        access_log: the log file, one JSON object for each request.
    """
    return f"""log_format vllm_fleet_mirror escape=json
  '{{"host":"$remote_addr","path":"$uri","status":$status,"bytes":$body_bytes_sent,"range":"$http_range"}}';
server {{
  listen {listen};
  root {directory};
  access_log {access_log} vllm_fleet_mirror;
  sendfile on;
  tcp_nopush on;
  etag on;
  if ($request_method !~ ^(GET|HEAD)$) {{ return 405; }}
  # Partial downloads and the mirror's own files are not served.
  location ~ /\\. {{ return 404; }}
  location /wheels/simple/ {{
    index index.html;
    add_header Cache-Control "no-cache";
  }}
  location = /mirror.json {{ add_header Cache-Control "no-cache"; }}
}}
"""


def standalone_config(directory: str, listen: str, state: str) -> str:
    """A complete configuration for one nginx in the foreground, with its own files in one folder.

    Args:
        directory: the mirror's folder.
        listen: address and port.
        state: a folder for its log and its temporary files.
    """
    temporary = "".join(
        f"  {kind}_temp_path {state}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    body = "".join(f"  {line}\n" for line in server_block(directory, listen, f"{state}/access.log").splitlines())
    return (
        f"daemon off;\npid {state}/nginx.pid;\nerror_log stderr warn;\nworker_processes auto;\n"
        "events { worker_connections 1024; }\nhttp {\n  default_type application/octet-stream;\n"
        "  types { text/html html; application/json json; }\n"
        f"{temporary}{body}}}\n"
    )
