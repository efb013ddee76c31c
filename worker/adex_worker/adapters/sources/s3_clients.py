"""With whose rights S3 is asked: the server's own, or those of the caller's credential."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from boto3.session import Session
from botocore.config import Config

from adex_proto.adapter import AdapterKey, credential_tenant
from adex_worker.adapters.core.s3_credential import S3Credential, s3_credential
from adex_worker.adapters.sources.s3_answers import S3
from adex_worker.adapters.sources.transfer import Patience, unavailable

# A client takes about 300 KiB and 20 ms to be made, and keeps its connections for the next request.
CREDENTIALS_MAX = 64


@dataclass(frozen=True, slots=True)
class Access:
    """A boto3 client, and whether it signs with a credential of the caller's own."""

    client: Any = field(repr=False)
    callers: bool


class S3Clients:
    """One client for the server, and one for each of the credentials used last.

    Endpoint and region are the operator's for all of them: what boto3 finds around it, unless they
    are given. `own` is the server's own credential; None: what boto3 finds.
    """

    def __init__(
        self,
        patience: Patience,
        *,
        connections_max: int,
        endpoint_url: str | None = None,
        region_name: str | None = None,
        own: S3Credential | None = None,
    ) -> None:
        self._session = Session()
        self._endpoint_url, self._region_name = endpoint_url, region_name
        self._config = Config(
            connect_timeout=patience.connect_s,
            read_timeout=patience.read_s,
            # Tries are counted by the source, which can go on with a broken download.
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=connections_max,
            # The source verifies what it downloads, whole and once.
            response_checksum_validation="when_required",
            # boto3 would put its own together anew for each request.
            user_agent="adex",
        )
        # A session makes one client at a time; a client may be used by any number of threads.
        self._making = threading.Lock()
        self._own = Access(self._made(own), callers=False)
        self._callers: OrderedDict[str, Access] = OrderedDict()

    @property
    def credentials_kept(self) -> int:
        """Credentials of callers for which a client is kept."""
        return len(self._callers)

    def access(self, key: AdapterKey, credential: str) -> Access:
        """The client that asks for `key`.

        Raises ValidationError where `credential` is none, SourceUnavailable where it is missing.
        """
        if not credential:
            if key.credentialed:
                raise unavailable(S3, "the credential for this name is not at hand", 1.0)
            return self._own
        # By what cannot be read back, so that no table of secrets is kept.
        name = credential_tenant("", credential)
        with self._making:
            access = self._callers.get(name)
            if access is None:
                access = Access(self._made(s3_credential(credential)), callers=True)
                self._callers[name] = access
                if len(self._callers) > CREDENTIALS_MAX:
                    # Downloads under way keep it; its connections are closed with the last of them.
                    self._callers.popitem(last=False)
            self._callers.move_to_end(name)
            return access

    def _made(self, credential: S3Credential | None) -> Any:
        # Without a credential boto3 looks for one.
        signing = credential or S3Credential("", "")
        return self._session.client(
            "s3",
            endpoint_url=self._endpoint_url,
            region_name=self._region_name,
            config=self._config,
            aws_access_key_id=signing.access_key or None,
            aws_secret_access_key=signing.secret or None,
            aws_session_token=signing.session_token or None,
        )
