"""All metadata stands in setup.cfg; this file is for tools that want a setup.py."""

from setuptools import setup

setup()
