"""RunInfo and its engines as JSON objects and back."""

from __future__ import annotations

from pytest_speedbench.report.decode import Fields
from pytest_speedbench.report.run_info import CellData, EngineRecord, GpuRecord, OptionRecord, RunInfo, plain_json

JSONObject = dict[str, object]


def run_to_json(run: RunInfo) -> JSONObject:
    """The run, with its fingerprint."""
    return {
        "started": run.started,
        "argv": list(run.argv),
        "plugin_version": run.plugin_version,
        "python_version": run.python_version,
        "pytest_version": run.pytest_version,
        "platform": run.platform,
        "cpu": run.cpu,
        "dataset": {
            "id": run.dataset,
            "sha256": run.dataset_sha256,
            "cells": [cell._asdict() for cell in run.dataset_cells],
        },
        "thresholds": list(run.thresholds),
        "options": [option._asdict() for option in run.options],
        "engines": [engine_to_json(engine) for engine in run.engines],
        "git_commit": run.git_commit,
        "ci": {"url": run.ci_url, "id": run.ci_id},
        "fingerprint": run.fingerprint,
    }


def run_from_json(read: Fields) -> RunInfo:
    """What ``run_to_json`` wrote."""
    dataset, ci = read.child("dataset"), read.child("ci")
    return RunInfo(
        started=read.text("started"),
        argv=read.texts("argv"),
        plugin_version=read.text("plugin_version"),
        python_version=read.text("python_version"),
        pytest_version=read.text("pytest_version"),
        platform=read.text("platform"),
        cpu=read.text("cpu"),
        dataset=dataset.text("id"),
        dataset_sha256=dataset.text("sha256"),
        dataset_cells=tuple(
            CellData(
                cell=cell.text("cell"),
                prompts=cell.integer("prompts"),
                masked=cell.integer("masked"),
                multiturn=cell.integer("multiturn"),
                turns=cell.integer("turns"),
                sha256=cell.text("sha256"),
            )
            for cell in (dataset.children("cells") if dataset.has("cells") else ())
        ),
        thresholds=read.texts("thresholds"),
        options=tuple(
            OptionRecord(option.text("name"), option.text("value"), option.text("origin"))
            for option in read.children("options")
        ),
        engines=tuple(engine_from_json(engine) for engine in read.children("engines")),
        git_commit=read.optional_text("git_commit"),
        ci_url=ci.optional_text("url"),
        ci_id=ci.optional_text("id"),
    )


def engine_to_json(engine: EngineRecord) -> JSONObject:
    """One engine, for the artifact and for the way from a worker to the controller."""
    return {
        "profile": engine.profile,
        "engine": engine.engine,
        "version": engine.version,
        "model": engine.model,
        "method": engine.method,
        "draft_model": engine.draft_model,
        "draft_tokens": engine.draft_tokens,
        "gpus": [_gpu_to_json(gpu) for gpu in engine.gpus],
        "resolved": plain_json(engine.resolved),
        "start_s": engine.start_s,
        "base_url": engine.base_url,
        "fingerprint": engine.fingerprint,
    }


def engine_from_json(data: object, where: str = "engine") -> EngineRecord:
    """What ``engine_to_json`` wrote. Raises ConfigError for anything else."""
    read = data if isinstance(data, Fields) else Fields(data, where)
    return EngineRecord(
        profile=read.text("profile"),
        engine=read.text("engine"),
        version=read.text("version"),
        model=read.text("model"),
        method=read.optional_text("method"),
        draft_model=read.optional_text("draft_model"),
        draft_tokens=read.optional_integer("draft_tokens"),
        gpus=tuple(_gpu_from_json(gpu) for gpu in read.children("gpus")),
        resolved=read.child("resolved").data,
        start_s=read.optional_number("start_s"),
        base_url=read.optional_text("base_url"),
    )


def _gpu_to_json(gpu: GpuRecord) -> JSONObject:
    return {
        "name": gpu.name,
        "uuid": gpu.uuid,
        "index": gpu.index,
        "driver": gpu.driver,
        "cuda": gpu.cuda,
        "facts": plain_json(gpu.facts),
    }


def _gpu_from_json(read: Fields) -> GpuRecord:
    return GpuRecord(
        name=read.text("name"),
        uuid=read.text("uuid"),
        index=read.optional_integer("index"),
        driver=read.text("driver"),
        cuda=read.text("cuda"),
        facts=read.child("facts").data,
    )
