"""Tokens for Makai's gRPC door: signed with an access key, good for a few minutes, and of no use to learn the secret from."""

import hashlib
import hmac
import time


def authorization(access_key_id: str, secret_access_key: str, lifetime_secs: int = 600) -> str:
    """Value of the metadata `authorization`; make a new one for each call, or at least before it expires (an hour at most)."""
    expires = int(time.time()) + lifetime_secs
    text = f"makai-grpc-1\n{access_key_id}\n{expires}"
    signature = hmac.new(secret_access_key.encode(), text.encode(), hashlib.sha256).hexdigest()
    return f"Bearer makait1.{access_key_id}.{expires}.{signature}"
