"""Makes each ticket show what it should, through every fault.

`core` decides, purely; `notices` says what a ticket should show; `attempts` claims, talks to the platform and notes the
outcome; `lanes` runs attempts in every worker process.
"""
