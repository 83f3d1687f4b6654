"""What `PostgresStorage` is made of.

`schema` has the tables, `accept`, `queue` and `settle` what is done to them, `reads` what is asked for; `connection`
keeps connections and maps their errors, `listener` hears what other processes made due, `roster` says which of them
deliver, and `outbox` writes into transactions of callers.
"""
