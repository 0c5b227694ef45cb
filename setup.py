"""Hands the metadata of settings.ini to setuptools; what is static stands in pyproject.toml."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = ini['DEFAULT']

statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable', '6 - Mature', '7 - Inactive']
minor = int(cfg['min_python'].split('.')[1])
suffix = '_requirements'

setup(
    version=cfg['version'],
    author=cfg['author'],
    keywords=cfg['keywords'].split(),
    install_requires=cfg['requirements'].split(),
    extras_require={k[:-len(suffix)]: v.split() for k, v in cfg.items() if k.endswith(suffix)},
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    classifiers=[
        f"Development Status :: {statuses[int(cfg['status']) - 1]}",
        'Intended Audience :: Education', 'Intended Audience :: Science/Research',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Framework :: Jupyter',
        *(f'Programming Language :: Python :: 3.{v}' for v in range(minor, 14)),
    ],
)
