"""coturn on a host of the lab: STUN, TURN over UDP, TCP and TLS, with a certificate of a test CA."""

from __future__ import annotations

import base64
import hashlib
import hmac
import subprocess
import time
from pathlib import Path

import link as linking

from network import Host
from programs import environment
from space import LabError, run

PORT, TLS_PORT = 3478, 443
SECRET = "the lab's own secret"
NAME = "turn.lab.test"
LIFETIME = 24 * 3600
"""Seconds for which credentials are good."""
START_TIME = 10.0


class CertificateAuthority:
    """A CA that nobody trusts but whoever is told to (`SSL_CERT_FILE`)."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self._folder = folder
        self.certificate = folder / "ca.pem"
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=lab test CA",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
            "-keyout", str(folder / "ca.key"), "-out", str(self.certificate))

    def issue(self, name: str, addresses: list[str], days: int = 2) -> tuple[Path, Path]:
        """A certificate for a server, with its key."""
        key, request, certificate = (self._folder / f"{name}.{ending}" for ending in ("key", "csr", "pem"))
        names = ",".join([f"DNS:{name}", *(f"IP:{address}" for address in addresses)])
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n")
        run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}", "-keyout", str(key),
            "-out", str(request))
        run("openssl", "x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self._folder / "ca.key"),
            "-CAcreateserial", "-days", str(days), "-extfile", str(extensions), "-out", str(certificate))
        return certificate, key


class Turn:
    """A running coturn; UDP and TCP on 3478, TCP and TLS on 443 (it tells them apart by their first bytes)."""

    def __init__(self, host: Host, folder: Path, authority: CertificateAuthority, more: list[str] | None = None):
        self.host, self._folder = host, folder
        folder.mkdir(exist_ok=True)
        self.addresses = [address for address in (host.v4, host.v6) if address]
        certificate, key = authority.issue(NAME, self.addresses)
        every = [word for address in self.addresses for word in (f"--listening-ip={address}", f"--relay-ip={address}")]
        self._command = ["turnserver", "-n", *every, f"--listening-port={PORT}", f"--tls-listening-port={TLS_PORT}", f"--cert={certificate}",
                         f"--pkey={key}", "--use-auth-secret", f"--static-auth-secret={SECRET}", "--realm=lab.test", "--fingerprint",
                         "--no-cli", "--no-multicast-peers", "--userdb=:memory:", f"--pidfile={folder / 'pid'}", "--log-file=stdout",
                         "--simple-log", *(more or [])]
        self._process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        with open(self._folder / "turn.log", "ab") as log:
            self._process = subprocess.Popen([*self.host.prefix, *self._command], cwd=self._folder, env=environment(self._folder),
                                             stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        linking.wait_until(lambda: self._ready() or self._process.poll() is not None, "coturn", START_TIME)
        if self._process.poll() is not None:
            tail = (self._folder / "turn.log").read_text(errors="replace").splitlines()[-5:]
            raise LabError(f"turnserver ended with {self._process.returncode}: {' | '.join(tail)}")

    def _ready(self) -> bool:
        return self.host.listens(PORT, "udp") and self.host.listens(TLS_PORT) and self.host.listens(PORT)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def credentials(self, lifetime: float = LIFETIME, secret: str = SECRET) -> tuple[str, str]:
        """User name and password in the REST form: expiry and name, and their HMAC."""
        user = f"{int(time.time() + lifetime)}:lab"
        return user, base64.b64encode(hmac.digest(secret.encode(), user.encode(), hashlib.sha1)).decode()

    def ice_servers(self, *kinds: str, name: str = NAME) -> list[dict]:
        """The browser's list, with STUN and TURN of these kinds: `stun`, `udp`, `tcp`, `tls`."""
        urls = {"stun": f"stun:{name}:{PORT}", "udp": f"turn:{name}:{PORT}?transport=udp", "tcp": f"turn:{name}:{TLS_PORT}?transport=tcp",
                "tls": f"turns:{name}:{TLS_PORT}?transport=tcp"}
        user, password = self.credentials()
        plain = [{"urls": [urls[kind]]} for kind in kinds if kind == "stun"]
        relays = [urls[kind] for kind in kinds if kind != "stun"]
        return plain + ([{"urls": relays, "username": user, "credential": password}] if relays else [])
