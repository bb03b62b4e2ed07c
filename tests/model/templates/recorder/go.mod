module aether-trio/tests/model/templates/recorder

go 1.24
