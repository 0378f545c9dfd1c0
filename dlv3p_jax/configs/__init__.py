"""Configurations: each file has get_config(), starts from common.py and states only what differs."""
