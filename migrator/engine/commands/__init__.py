"""Commands: taken once from every interface, checked, journalled, and carried out.

- `dispatcher` validates, authorises and journals each (`audit` says who asked for what), `handlers` carries it out:
  `migrations`, `evacuations` (`homecoming`: who comes home with a restore), `rolls`, `saving`, `discarding` (files of
  saved guests). `lookups` finds what it names, or refuses it.
- `settlement` joins what has ended with the command that began it.
- Commands that only list: `saved_list` (by `saved_history`), `site_rules`.
"""
