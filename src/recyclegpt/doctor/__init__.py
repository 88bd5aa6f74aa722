"""What `recyclegpt doctor` looks at, a file for each group of checks.

Only the standard library is imported at the head of these files: the doctor has to answer where an installation is
broken.
"""
