"""What is published: score tables as versions in an MLflow registry. No module here imports mlflow before it is used."""
