"""Will it fit, and how fast can it be: plans of a run on chips that are not here."""
