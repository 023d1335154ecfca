"""Scalars for MLflow: in RUN_DIR/mlruns, unless MLFLOW_TRACKING_URI says otherwise."""

import os
import time
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hpcasync.config.strict import flatten
from hpcasync.train.records.trackers import identity_of

_LONGEST_VALUE = 500  # characters of a parameter that MLflow takes


class MlflowRun:
    """A run of MLflow; a resumed run goes on as the same one.

    Raises:
        OSError: by every method, where it cannot be written.
    """

    name = "mlflow"

    def __init__(self, run_dir: Path, experiment: str, configuration: dict[str, Any]) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run_dir / "mlruns").absolute().as_uri()
        # MLflow wants a data base by default, which file systems of clusters do not bear.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        try:
            self._client = MlflowClient(uri)
            self._identity = identity_of(run_dir, "mlflow", lambda: self._create(run_dir, experiment, configuration))
            self._client.update_run(self._identity, status="RUNNING")
        except MlflowException as error:
            raise OSError(str(error)) from error

    def _create(self, run_dir: Path, experiment: str, configuration: dict[str, Any]) -> str:
        known = self._client.get_experiment_by_name(experiment)
        number = known.experiment_id if known is not None else self._client.create_experiment(experiment)
        identity: str = self._client.create_run(number, run_name=run_dir.name).info.run_id
        parameters = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in flatten(configuration).items()]
        self._client.log_batch(identity, params=parameters)
        return identity

    def add(self, scalars: dict[str, float], step: int) -> None:
        now = round(time.time() * 1000)
        try:
            self._client.log_batch(self._identity, [Metric(key, value, now, step) for key, value in scalars.items()])
        except MlflowException as error:
            raise OSError(str(error)) from error

    def close(self) -> None:
        try:
            self._client.set_terminated(self._identity)
        except MlflowException as error:
            raise OSError(str(error)) from error
