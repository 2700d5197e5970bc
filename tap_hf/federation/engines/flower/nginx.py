"""The proxy before a SuperLink, which lets sites reach the part of its API that is theirs.

A SuperLink serves three APIs at one address: Fleet, for the nodes, which it knows by their keys; Control, with which
anyone can submit code and register keys; and Runtime, for its own processes. Sites may reach the first only.
"""

import shutil
from pathlib import Path

from tap_hf.atomic_files import write_atomically
from tap_hf.federation.engines.flower.keys import Tls

# Of the Fleet API, what a registered node needs; registering is done by the server.
_CALLS = (
    "activate-node|deactivate-node|send-node-heartbeat|pull-messages|push-messages|get-run|get-fab|push-object|"
    "pull-object|confirm-message-received"
)
_CONFIG = """\
# Written by tap_hf for one run of `tap-hf server`; docs/federate.md explains it.
daemon off;
pid nginx.pid;
error_log stderr warn;
worker_processes 2;

events {{
  worker_connections 4096;
}}

http {{
  access_log off;
  server_tokens off;
  # Nothing is written to disk: a request is at most 5 MiB of a value and its head (flwr's chunk).
  client_max_body_size 8m;
  client_body_buffer_size 8m;
  client_body_temp_path nginx-temporary;
  proxy_temp_path nginx-temporary;
  fastcgi_temp_path nginx-temporary;
  uwsgi_temp_path nginx-temporary;
  scgi_temp_path nginx-temporary;
  proxy_max_temp_file_size 0;
  client_body_timeout 60s;
  client_header_timeout 30s;

  upstream superlink {{
    server {superlink};
    keepalive 16;
  }}

  server {{
    listen {listen} ssl;
    ssl_certificate public.pem;
    ssl_certificate_key public.key;
    ssl_protocols TLSv1.2 TLSv1.3;

    # What a registered node asks for. The SuperLink checks its signature.
    location ~ ^/v1/fleet/({calls})$ {{
      proxy_pass https://superlink/v1/fleet/$1;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_ssl_name localhost;
      proxy_ssl_verify on;
      proxy_ssl_trusted_certificate ca.crt;
    }}

    # Everything else: /v1/control/ (runs, keys), /v1/runtime/ (the server's own process), documentation.
    location / {{
      return 404;
    }}
  }}
}}
"""


def find_nginx() -> str | None:
    """Return the path of nginx, `None` if it is not installed."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin")


def nginx_command(folder: Path, listen: str, tls: Tls, superlink: str) -> list[str]:
    """Write a configuration to the folder of a SuperLink, and return the command that serves it.

    Args:
        folder: has the certificate of the authority that signed the SuperLink's.
        listen: host and port for sites.
        tls: the server's certificate and key.
        superlink: host and port of the SuperLink.
    """
    for name, path in (("public.pem", tls.certificate), ("public.key", tls.key)):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(path.resolve())
    write_atomically(folder / "nginx.conf", _CONFIG.format(listen=listen, superlink=superlink, calls=_CALLS).encode())
    return [str(find_nginx()), "-p", str(folder.resolve()), "-c", "nginx.conf"]
