"""Measuring a running server: load on it, what it answers, and what that costs. `tercet bench` is its
command.

`targets` are what is asked (one ensemble, or the whole composed query), `load` how often (so many requests at
once, or so many a second), `measure` warms up and takes windows until they agree, `server` and `processes`
read what the server says of itself and what it uses, `report` and `plots` write it all down.
"""
