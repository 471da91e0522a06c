"""The command `vmae2`: words into arguments, arguments into verbs."""
