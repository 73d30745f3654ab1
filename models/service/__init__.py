"""The service behind `mochi-tt serve`: jobs in a database, one worker process on the mesh, and HTTP before them.

`jobs` says what a job is and what a store of jobs does; `store` keeps them in SQLite, `postgres` in Postgres for
several boxes, `sql` has what both share, and `simulation` what many boxes wait for. `requests` turns the fields of a
client into a checked set-up. `worker` runs jobs with an `engine`, in a process that `supervisor` starts and restarts.
`service` has the functions that every door calls (the routes of `app` and `aliases`, a page). `files` serves and
expires results, `keys` knows who asks, `limits` bounds what a connection may do, `metrics` counts.
"""
