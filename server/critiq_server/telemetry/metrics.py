"""Prometheus metrics. Label values are bounded: operations, error codes, names of this server's models and stages."""

from __future__ import annotations

import platform
from importlib import metadata

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

from critiq_server.telemetry import counters

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_BYTES = tuple(4.0**power for power in range(5, 14))
"""1 KiB to 64 MiB."""
_SCORES = tuple(step / 20 for step in range(1, 21))


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        for counter in counters.EVERY:
            registry.register(counter)
        self.build = Gauge(
            "critiq_build_info",
            "Always 1; says which version of critiq serves, on which version of Python.",
            ["version", "python"],
            registry=registry,
        )
        self.build.labels(version(), platform.python_version()).set(1)
        self.requests = Counter(
            "critiq_requests_total",
            "Calls answered, by operation, model and code (OK or the error's).",
            ["operation", "model", "code"],
            registry=registry,
        )
        self.latency = Histogram(
            "critiq_request_seconds",
            "Time from accepting a call to its answer, by operation.",
            ["operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.items = Counter(
            "critiq_items_total", "Pictures answered, by model and code.", ["model", "code"], registry=registry
        )
        self.in_flight = Gauge("critiq_in_flight", "Pictures accepted and not yet answered.", registry=registry)
        self.in_flight_limit = Gauge(
            "critiq_in_flight_limit", "The most that is accepted at once (limits.in_flight).", registry=registry
        )
        self.in_flight_bytes = Gauge("critiq_in_flight_bytes", "Bytes of their data.", registry=registry)
        self.in_flight_bytes_limit = Gauge(
            "critiq_in_flight_bytes_limit", "Beyond so many bytes, callers get TOO_BUSY.", registry=registry
        )
        self.request_bytes = Histogram(
            "critiq_request_bytes",
            "Bytes of the pictures of one call, or of one item of a stream, as they were sent.",
            buckets=_BYTES,
            registry=registry,
        )
        self.connections = Gauge(
            "critiq_connections",
            "Open HTTP connections, by port (rest, metrics, compat). gRPC does not tell of its own.",
            ["port"],
            registry=registry,
        )
        self.loop_lag = Histogram(
            "critiq_event_loop_lag_seconds",
            "How late timers of the event loop come, looked at four times a second.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.threads = Gauge(
            "critiq_worker_threads", "Threads that decode pictures and run stages on the CPU.", registry=registry
        )
        self.threads_busy = Gauge("critiq_worker_threads_busy", "Those of them that are at work.", registry=registry)
        self.rejected = Counter(
            "critiq_rejected_total", "Calls refused before any work, by reason.", ["reason"], registry=registry
        )
        self.decode = Histogram(
            "critiq_image_decode_seconds",
            "Time to decode, hash and resize one picture.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.decode_wait = Histogram(
            "critiq_image_decode_wait_seconds",
            "Time a picture waited for a thread to decode it.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.download_seconds = Histogram(
            "critiq_image_download_seconds",
            "Time to fetch one picture by URL, refused and failed ones too.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "critiq_batch_size",
            "Items in a batch, by model and stage.",
            ["model", "stage"],
            buckets=_SIZES,
            registry=registry,
        )
        self.queue = Histogram(
            "critiq_queue_seconds",
            "Time an item waited for its batch, by model and stage.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.compute = Histogram(
            "critiq_compute_seconds",
            "Time a batch took in the runtime, by model and stage.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stage_faults = Counter(
            "critiq_stage_faults_total",
            "Failures of stages, by model, stage and kind: raised, wrong_shape, not_finite (one item's), stalled.",
            ["model", "stage", "kind"],
            registry=registry,
        )
        self.dropped = Counter(
            "critiq_dropped_total",
            "Items dropped before compute: cancelled or past their deadline.",
            ["model", "stage"],
            registry=registry,
        )
        self.lookups = Counter(
            "critiq_store_lookups_total",
            "Look-ups in the feature store in memory, by stage and outcome (hit, miss).",
            ["stage", "outcome"],
            registry=registry,
        )
        self.store_bytes = Gauge("critiq_store_bytes", "Bytes in the memory store.", registry=registry)
        self.store_limit = Gauge("critiq_store_limit_bytes", "Bytes that it may take.", registry=registry)
        self.tier_lookups = Counter(
            "critiq_feature_lookups_total",
            "Features looked up below memory, by tier (disk, network) and outcome: hit, miss, error (the tier failed), "
            "skipped (it failed a moment ago).",
            ["tier", "outcome"],
            registry=registry,
        )
        self.tier_writes = Counter(
            "critiq_feature_writes_total",
            "Features to be kept below memory, by tier and outcome: written, error, skipped (it failed a moment ago, "
            "or too much is waiting).",
            ["tier", "outcome"],
            registry=registry,
        )
        self.tier_bytes = Counter(
            "critiq_feature_bytes_total",
            "Bytes of features read from and written to each tier below memory.",
            ["tier", "operation"],
            registry=registry,
        )
        self.tier_seconds = Histogram(
            "critiq_feature_seconds",
            "Time of one operation (get, put) of many features on a tier below memory.",
            ["tier", "operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.tier_damaged = Counter(
            "critiq_feature_damaged_total", "Stored features found damaged, by tier.", ["tier"], registry=registry
        )
        self.degraded = Counter(
            "critiq_degraded_total",
            "Scores that a fallback head gave because features were missing, by model and dimension.",
            ["model", "dimension"],
            registry=registry,
        )
        self.jobs = Gauge("critiq_jobs", "Jobs that are kept, by state.", ["state"], registry=registry)
        self.jobs_bytes = Gauge(
            "critiq_jobs_waiting_bytes", "Bytes of pictures and prompts that jobs still hold.", registry=registry
        )
        self.jobs_oldest = Gauge(
            "critiq_jobs_oldest_queued_seconds",
            "How long the oldest queued job has waited; 0: none.",
            registry=registry,
        )
        self.callbacks = Counter(
            "critiq_job_callbacks_total",
            "Tries to deliver a job's callback, by outcome: delivered, failed (to be tried again), refused (410), "
            "given_up.",
            ["outcome"],
            registry=registry,
        )
        self.downloads = Counter(
            "critiq_image_downloads_total",
            "Pictures fetched by URL, by outcome (OK or an error's code).",
            ["code"],
            registry=registry,
        )
        self.prefetched = Counter(
            "critiq_prefetched_total",
            "Pictures whose features were asked for ahead, by model and outcome (OK or an error's code).",
            ["model", "code"],
            registry=registry,
        )
        self.scores = Histogram(
            "critiq_score",
            "Scores given, 0 (worst) to 1 (best), by model, version and dimension: calibrated, or percentile / 100 of "
            "those without a calibration.",
            ["model", "version", "dimension"],
            buckets=_SCORES,
            registry=registry,
        )
        self.routed = Counter(
            "critiq_routed_total",
            "Pictures answered for an alias, by alias and the model and version that answered.",
            ["alias", "model", "version"],
            registry=registry,
        )
        self.shadowed = Counter(
            "critiq_shadow_total",
            "Answers offered to an alias's shadow, by outcome: scored, dropped (no room for it), failed.",
            ["alias", "outcome"],
            registry=registry,
        )
        self.decisions = Counter(
            "critiq_decisions_total",
            "Verdicts given, by moderation policy and decision (accept, review, reject).",
            ["policy", "decision"],
            registry=registry,
        )
        self.connections_dropped = Counter(
            "critiq_connections_dropped_total",
            "HTTP connections refused (full, address) or cut because the client was slow (handshakes, headers, body, "
            "answer), by port and reason.",
            ["port", "reason"],
            registry=registry,
        )
        self.certificate_end = Gauge(
            "critiq_certificate_expiry_timestamp_seconds",
            "When the server's certificate expires, in seconds since 1970; nothing without TLS.",
            ["certificate"],
            registry=registry,
        )
        self.models = Gauge(
            "critiq_model_ready",
            "1 while a version is served, and not suspended because it fails.",
            ["model", "version"],
            registry=registry,
        )
        self.model_loads = Counter(
            "critiq_model_loads_total",
            "Loads of models, by model and outcome: loaded, refused (a broken or unfit bundle), failed.",
            ["model", "outcome"],
            registry=registry,
        )
        self.model_load_seconds = Gauge(
            "critiq_model_load_seconds",
            "How long the last load of a model took, digests and golden records included.",
            ["model"],
            registry=registry,
        )


def version() -> str:
    """Version of critiq; ``unknown`` where it runs from a folder and was never installed."""
    try:
        return metadata.version("critiq")
    except metadata.PackageNotFoundError:
        return "unknown"
