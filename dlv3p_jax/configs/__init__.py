"""Configurations: each file has get_config(), starts from configs/common.py and states only what differs."""
