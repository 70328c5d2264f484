"""The trainer: one loop at whatever rate the schedule says, exact resume, branches."""
