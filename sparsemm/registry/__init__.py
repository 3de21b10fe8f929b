"""Publishes score tables as versions in an MLflow registry. Every module imports mlflow only when it is used."""
