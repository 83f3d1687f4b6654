"""What `SQLiteStorage` is made of.

**The queue**, functions that are given a connection: `schema` has the tables, `queue` what is done to them row by row,
`settle` how a delivery and its message end, `upcoming` what is due next, `reads` what is asked for. `bulk` does the
common cases of a whole batch in one step, with the triggers of `batches`.

**One file, one writer**: `operations` runs them in a thread, many in each commit, on what `file` opens (`file_system`:
is it local? `guard`: may others write it? `identity`: is it still there?). `owner` is the process that has the
`file_lock`.

**Several processes**: `share` finds out whether this one is the owner or a `follower`, whose `calls` go through the
`socket`, in the frames of `wire`, to the owner's `door`.

**Transactions of callers**: `outbox` writes into them, `commits` notices when they end.
"""
