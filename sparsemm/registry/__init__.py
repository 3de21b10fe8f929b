"""Score tables as versions in an MLflow registry; no module here imports mlflow before it is used."""
