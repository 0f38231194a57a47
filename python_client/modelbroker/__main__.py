"""`python -m modelbroker`: the program, as the console script runs it."""

from modelbroker._program import main

main()
