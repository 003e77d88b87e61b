"""Work on a running fleet: drift, enrolment, host keys, filling and serving a mirror."""
