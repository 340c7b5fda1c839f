"""Detectors outside of torch: ONNX, verified before it says "done"."""

from recollect.export.onnx import ExportError, export_onnx

__all__ = ["ExportError", "export_onnx"]
