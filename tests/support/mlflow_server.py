"""A server that speaks as much of MLflow's REST interface as gpt2x uses, and fails as a test says."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

HANG_S = 60.0  # longer than any client waits


class MlflowServer:
    """Keeps runs in memory. MLflow's SQL stores have a value with the same key, step, time and value once; so has this.

    Attributes:
        fault: called with each path and the JSON of the request; returns None, or what goes wrong: a status (int),
            seconds before the answer (float), or "hang".
        runs: by id; `metrics` has tuples of key, value, time (ms) and step.
        artifacts: contents by path.
    """

    def __init__(self):
        self.experiments, self.runs, self.artifacts = {}, {}, {}
        self.fault = lambda path, request: None
        self.num_requests = 0
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *error):
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def points(self, run_id):
        """Values by key and step."""
        points = {}
        for key, value, _, step in sorted(self.runs[run_id]["metrics"], key=lambda each: each[3]):
            points.setdefault((key, step), []).append(value)
        return points

    # ---- answers

    def answer(self, path, request, body):
        """Return status and JSON of an answer."""
        self.num_requests += 1
        wrong = self.fault(path, request)
        if wrong == "hang":
            self._closing.wait(HANG_S)
            return 503, {}
        if isinstance(wrong, float):
            time.sleep(wrong)
        elif wrong is not None:
            return wrong, {
                "error_code": "BAD_REQUEST" if wrong == 400 else "INTERNAL_ERROR",
                "message": f"fault {wrong}",
            }
        if "/mlflow-artifacts/artifacts/" in path:
            self.artifacts[path.partition("/mlflow-artifacts/artifacts/")[2]] = body
            return 200, {}
        name = path.partition("/mlflow/")[2].replace("/", "_").replace("-", "_")
        method = getattr(self, f"_{name}", None)
        if method is None:
            return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": path}
        with self._lock:
            try:
                return 200, method(request)
            except KeyError as error:
                return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"no {error}"}

    def _experiments_get_by_name(self, request):
        return {"experiment": self.experiments[request["experiment_name"]]}

    def _experiments_search(self, request):
        return {"experiments": list(self.experiments.values())}

    def _experiments_create(self, request):
        number = str(len(self.experiments) + 1)
        self.experiments[request["name"]] = {
            "experiment_id": number, "name": request["name"], "artifact_location": f"mlflow-artifacts:/{number}",
            "lifecycle_stage": "active", "tags": request.get("tags", []),
        }  # fmt: skip
        return {"experiment_id": number}

    def _experiments_set_experiment_tag(self, request):
        return {}

    def _runs_create(self, request):
        run_id, number = uuid4().hex, request["experiment_id"]
        info = {
            "run_id": run_id, "run_uuid": run_id, "experiment_id": number, "status": "RUNNING",
            "start_time": request["start_time"], "run_name": request.get("run_name", ""), "lifecycle_stage": "active",
            "artifact_uri": f"mlflow-artifacts:/{number}/{run_id}/artifacts",
        }  # fmt: skip
        tags = {each["key"]: each["value"] for each in request.get("tags", [])}
        self.runs[run_id] = {"info": info, "tags": tags, "params": {}, "metrics": set()}
        return {"run": self._run(run_id)}

    def _run(self, run_id):
        run = self.runs[run_id]
        lists = {name: [{"key": k, "value": v} for k, v in run[name].items()] for name in ("tags", "params")}
        return {"info": run["info"], "data": lists}

    def _runs_get(self, request):
        return {"run": self._run(request["run_id"])}

    def _runs_update(self, request):
        info = self.runs[request["run_id"]]["info"]
        info |= {key: request[key] for key in ("status", "end_time") if key in request}
        return {"run_info": info}

    def _runs_search(self, request):
        is_open = "status = 'RUNNING'" in request.get("filter", "")
        runs = [self._run(run_id) for run_id in self.runs]
        return {"runs": [run for run in runs if not is_open or run["info"]["status"] == "RUNNING"]}

    def _runs_log_inputs(self, request):
        return {}

    def _runs_log_batch(self, request):
        run = self.runs[request["run_id"]]
        run["metrics"] |= {
            (each["key"], str(float(each["value"])), int(each["timestamp"]), int(each.get("step", 0)))
            for each in request.get("metrics", [])
        }
        for name in ("tags", "params"):
            run[name] |= {each["key"]: each["value"] for each in request.get(name, [])}
        return {}

    def _metrics_get_history(self, request):
        metrics = self.runs[request["run_id"]]["metrics"]
        names = ("key", "value", "timestamp", "step")
        rows = [dict(zip(names, each, strict=True)) for each in metrics if each[0] == request["metric_key"]]
        return {"metrics": [row | {"value": "NaN" if row["value"] == "nan" else float(row["value"])} for row in rows]}


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
            self._reply(*server.answer(urlsplit(self.path).path, query, b""))

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            is_json = "json" in self.headers.get("Content-Type", "")
            self._reply(*server.answer(self.path, json.loads(body) if is_json else {}, body))

        do_PATCH = do_PUT = do_POST  # noqa: N815

        def _reply(self, status, content):
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def handle(self):
            try:
                super().handle()
            except ConnectionError:
                self.close_connection = True  # a client that has waited long enough

        def log_message(self, *arguments):
            pass

    return Handler
