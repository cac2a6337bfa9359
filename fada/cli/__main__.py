from fada.cli import main

main()
