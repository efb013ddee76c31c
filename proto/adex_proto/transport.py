"""How the two ends of the worker's gRPC connection are set up, so that they agree."""

# What one peer can make the other hold at once. A token id below two million takes at most three
# bytes, so a plan may introduce over twenty million prompt tokens before it meets this.
MESSAGE_BYTES_MAX = 64 * 1024 * 1024

_KEEPALIVE_TIME_MS = 20_000
_KEEPALIVE_TIMEOUT_MS = 10_000
# A server drops peers that ping more often than this; half the client's interval allows for jitter.
_PING_INTERVAL_MIN_MS = _KEEPALIVE_TIME_MS // 2

_BOTH_ENDS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    *_BOTH_ENDS,
    # Reconnecting is the caller's own loop; a shared subchannel would add a second back-off to it.
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy of the environment is for the world outside, not for our own worker.
    ("grpc.enable_http_proxy", 0),
)
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *_BOTH_ENDS,
    ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_MIN_MS),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", _PING_INTERVAL_MIN_MS),
    # Two workers on one port would each get half of the connections.
    ("grpc.so_reuseport", 0),
)
