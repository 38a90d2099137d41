"""The same two tasks in other libraries, each with its nearest equivalent of acknowledgement, results and limits."""
