"""What only this repository runs: long measurements that print tables."""
